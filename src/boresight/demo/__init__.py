"""A tiny model, easy-VQA and geometry questions: the demo, the notebooks, the tests and the benchmarks use them."""

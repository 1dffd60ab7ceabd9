"""The tiny models and easy-VQA: what the demo, the tests and the benchmarks run on."""

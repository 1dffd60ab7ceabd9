"""Code that the trainer's side and the engine's process share. It imports neither.

messages    the names under which vLLM finds boresight, and the calls of vLLM's workers with their answers
codec       converts these records to JSON and back, and checks every field
tensors     how tensors pass between the two sides, and the numbers that compare them
"""

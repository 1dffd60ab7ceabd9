"""What the trainer's side and the engine's process share. It imports neither.

messages    the names under which vLLM finds boresight, and the calls of its workers with their answers
codec       these records as JSON, and back with every field checked
tensors     how tensors pass between the two, and the numbers by which they are compared
"""

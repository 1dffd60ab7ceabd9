"""What runs where lmms-eval is installed, in an environment of its own: it may import lmms-eval, and nothing else here may."""

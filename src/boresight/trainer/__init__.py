"""The only code that sees every room: transformers' training loop around groups."""

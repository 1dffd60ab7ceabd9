"""From rewards to advantages: what each completion earned beyond its group."""

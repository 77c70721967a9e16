"""Meta-training of the transformer T on episodes of changed objects and defects."""

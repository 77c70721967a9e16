"""Meta-training of the transformer on episodes of changed objects and defects."""

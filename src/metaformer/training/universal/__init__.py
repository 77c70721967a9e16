"""Meta-training (MAML) of the autoencoder and the transformer."""

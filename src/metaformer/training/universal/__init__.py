"""Meta-training (MAML) of the autoencoder."""

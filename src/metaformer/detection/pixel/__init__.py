"""The `pixel` preset: autoencoder, instance prior and transformer, from scratch."""

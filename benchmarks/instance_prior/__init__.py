"""How well P finds objects, against simple unsupervised rivals."""

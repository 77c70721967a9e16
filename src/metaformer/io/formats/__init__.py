"""Parts of image formats that are decoded here."""

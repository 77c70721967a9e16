"""Sources of images for large runs: folders, archives, videos, lists and addresses.

``shards`` turns what the user names into small descriptions of work, ``readers`` opens them one
image at a time, ``prefetch`` decodes a few images ahead within a budget of pixels, ``naming``
says what an image is called in the results, and ``remote`` reaches ``s3://`` and its like.
"""

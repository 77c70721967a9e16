"""The scores of a run on disk: one line an image, as CSV or Parquet, that a run can go on with."""

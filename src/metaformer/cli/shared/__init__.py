"""What the commands share: arguments, options, examples of use, and how they speak."""

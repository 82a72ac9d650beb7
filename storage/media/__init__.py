"""Video: probing, decoding, cutting and writing it, in processes that may die."""

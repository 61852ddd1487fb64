"""Things that several tests share: definitions to compare with, tiny models, ragged batches, recorded numbers."""

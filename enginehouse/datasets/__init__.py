"""Rules about datasets that the SDK, which packs folders, and the optimizer, which takes archives, share."""

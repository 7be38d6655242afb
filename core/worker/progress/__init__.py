"""Progress of training: the best checkpoint, early stopping, and checks for finite numbers."""

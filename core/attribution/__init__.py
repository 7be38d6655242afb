"""Attribution of an answer to the training rows behind it."""

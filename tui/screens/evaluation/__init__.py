"""The evaluation of a prompt set: the form, the progress, and the answers to scroll through."""

"""What is done to a result after its run: look whether all of it is whole, and mend what is not."""

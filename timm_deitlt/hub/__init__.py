"""Publishing to the Hugging Face Hub: the folder, its model card, the commit and its verification."""

"""What a model is worth: figures, controls and pictures."""

"""What can be done with a trained network, without its data: `load` returns a predictor."""

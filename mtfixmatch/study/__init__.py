"""Studies: run a product of experiment factors and report the results beside a paper's figures."""

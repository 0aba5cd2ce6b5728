"""Many runs as one: a study is a product of factors, run where missing, reported beside a paper."""

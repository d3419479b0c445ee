"""Networks with a planted cause of a bad heatmap, and what the diagnosis says of them."""

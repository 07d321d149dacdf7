"""What is measured of every policy in every round."""

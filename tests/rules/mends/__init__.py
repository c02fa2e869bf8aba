"""What the mends of a family change, and what the program finds then."""

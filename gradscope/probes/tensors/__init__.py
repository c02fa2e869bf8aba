"""How we touch a tensor unseen."""

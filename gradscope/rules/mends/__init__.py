"""Mends: the edits of findings, by what they do to the source. Rules call them; what is not sure gives no edit."""

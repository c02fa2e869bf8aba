"""Mends that are tried: the program runs again in a process of its own, on sources that are served from memory."""

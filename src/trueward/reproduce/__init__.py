"""One small experiment per paper: the method against its baseline, with a verdict.

Each module measures its table into a folder, cell by cell, so that an interrupted experiment continues where it stopped.
"""

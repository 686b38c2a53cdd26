"""Sequence and graph networks over a patient's visits, and what is read from them."""

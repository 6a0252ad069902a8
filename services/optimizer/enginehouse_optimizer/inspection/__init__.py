"""Looks into uploaded datasets: names, headers and lengths only, whatever their size; nothing in them is executed."""

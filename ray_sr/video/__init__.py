"""Clips and animations: frame by frame through the upscaling engine, with all that a file carries.

Decoders run in processes of their own, which can be killed. Nothing here is imported by the codec processes but
what they need, so this file imports nothing.
"""

"""The verbs as functions: train, validate, analyze, dry run; and how their parts are built from the settings.

Imports every room but `hub`, `studies` and `cli`.
"""

"""Finds the coefficients of the soup that suits a few labelled images, and says how sure that is."""

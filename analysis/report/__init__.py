"""The report of one study: a single HTML page, from tables only, that needs neither network nor server.

sections.py lists what it shows; each section asks questions of queries/ and says how their answers are drawn.
"""

"""A page for people to try a model: captions, match scores, search, attention maps, answers; at 127.0.0.1. The only home of Gradio.

In: a model, and optionally shards to search. Out: a page that asks no other host for anything.
Open first: app.py, which lets through what the page itself asks for; page.py draws it. Gradio would send analytics, look for newer
versions, make share links, fetch URLs and keep files: none of it is left on. Only the verb that shows the page imports it.
"""

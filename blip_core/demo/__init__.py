"""A page for people: captions, match scores, search and attention maps of a model, at 127.0.0.1.

The page is Gradio's (page.py); app.py lets through what the page itself asks for and tells the browser to fetch nothing from elsewhere.
Gradio would send analytics, look for newer versions, make share links, fetch URLs and keep files: none of it is left on. It is imported
when the page is asked for, and by no other verb.
"""

"""A page for people: captions, match scores, search and attention maps of a model, at 127.0.0.1.

The page is our own three files (page.html, page.css, page.js) behind FastAPI and uvicorn, which MLflow and Prefect bring along. It is not
Gradio's because no maintained Gradio installs beside this project: 6.31 and all before it want Pillow < 13, most huggingface-hub < 2 as
well, and what pip finds in the end is 3.18 of 2023. Nor would its page work offline as it comes: fonts and scripts of other hosts,
analytics, share links. This one asks nothing of any other host, and its policy (CSP) would not let it.
"""

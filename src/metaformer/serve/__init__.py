"""The service: detectors made, kept and used over HTTP (extra ``metaformer-ad[serve]``).

``server`` starts it, ``app`` puts it together, ``routes`` are the addresses. Behind them ``store``
keeps detectors in a folder, ``jobs`` adapts, ``scoring`` scores; ``uploads`` and ``limits`` bound
what a client may ask for, ``security`` says who may ask, ``metrics`` counts, ``models`` are the
bodies of requests and answers.
"""

"""What a platform is told about a function, and what its container is built of.

``needs`` reads a function's needs off its snapshot, ``platforms`` says them in each platform's words,
``render`` fills the templates of infra/; ``bundle`` writes the folder that an image is built from,
``requirements`` says which packages belong into it. Nothing here talks to a platform.
"""

"""Records every change of a directory tree in changelogs, from kernel events and, after gaps, by comparison.

    detector    what a detector is and what it tells: hints. fanotify and inotify are the two
    recorder    one brick's recorder: looks at what was hinted, keeps the index, closes slices
    scan        compares a tree, or a part of it, with the index
    status      what the recorder says of itself, and how a worker talks to it
"""

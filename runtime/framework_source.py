"""The file that functions-framework is told to load. Not imported: it runs this, see ``framework``."""

from zerowake.runtime.framework import hand_over

hand_over(globals())

"""Procedural scenes: shapes, materials, the layouts that place them, and the ray caster that looks at them.

World axes: x east, y north, z up, metres. Cameras use OpenCV axes. Everything random comes from one generator that the
caller passes in, so that a scene is a function of its seed.
"""

"""All evidence on one page. Each step is a file of its own and can be used alone.

``subjects`` (which images), ``held`` (predictions of images held out), ``describing``, ``ranked``, ``contest``,
``advised``, ``confusion``, ``calibration``, ``projection``, ``neighbours``, ``findings`` and ``protocol`` make one
section each of what the rooms below found,
``headline`` the summary, ``others`` sections of other rooms' results, ``thumbnails`` and ``picturing`` the pictures;
``making`` takes the steps and ``joining`` writes the page.
"""

from .joining import SECTIONS, report

__all__ = ["SECTIONS", "report"]

"""Common English words that a learned vocabulary contains as single tokens even if the captions lack them.

Captions name visible things. Questions, answers and dialogues use other words, which would be split into letters.
BERT's vocabulary contains all of them.
"""

import string

_WORDS = """
a an the this that these those it its he she they him his her their we us our you your i me my one ones
and or but nor not no yes none neither either both all any some each every other another same such only also
if then than so as because while
what which who whose whom where when why how many much more most less least fewer few several enough lot
is are was were be been being am do does did done has have had can could will would shall should may might must
in on at to of for from by with without into onto over under above below between behind beside near next around
across along inside outside front back left right top bottom middle side sides upper lower half centre center edge
corner up down out off there here
zero two three four five six seven eight nine ten first second third last number count total pair
thing things object objects shape shapes shaped item items part parts kind type picture pictures image images photo
scene person people man men woman women child children boy girl animal food place room
color colors colour colours size pattern material red green blue yellow purple orange black white brown grey gray
pink small large big little tiny long short tall wide round flat old new young
exactly together alone else again very too just still yet about like
see seen look looks show shows shown lie lies stand sit wear hold please tell say said
start stop answer question true false maybe
made wood metal paper glass plastic heavy light soft hard warm cold expensive cheap
"""
COMMON_WORDS = tuple(_WORDS.split())
CHARACTERS = tuple(string.ascii_lowercase + string.digits + "?!.,:;'\"-/()&%")

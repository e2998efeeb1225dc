"""Papers that several cards share."""

from alignment.types import Paper

NASH_MD = Paper(
    title="Nash Learning from Human Feedback",
    authors="Munos, R{\\'e}mi and Valko, Michal and Calandriello, Daniele and Gheshlaghi Azar, Mohammad and Rowland, "
    "Mark and others",
    year=2023,
    arxiv="2312.00886",
)
ONLINE_IPO = Paper(
    title="Human Alignment of Large Language Models through Online Preference Optimisation",
    authors="Calandriello, Daniele and Guo, Daniel and Munos, R{\\'e}mi and Rowland, Mark and Tang, Yunhao and others",
    year=2024,
    arxiv="2403.08635",
)
EGPO = Paper(
    title="Extragradient Preference Optimization (EGPO): Beyond Last-Iterate Convergence for Nash Learning from Human "
    "Feedback",
    authors="Zhou, Runlong and Fazel, Maryam and Du, Simon S.",
    year=2025,
    arxiv="2503.08942",
)
NASH_MP = Paper(
    title="Accelerating Nash Learning from Human Feedback via Mirror Prox",
    authors="Tiapkin, Daniil and Calandriello, Daniele and Belomestny, Denis and Moulines, Eric and Naumov, Alexey and "
    "others",
    year=2025,
    arxiv="2505.19731",
)

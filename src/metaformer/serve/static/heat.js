// Colours of the heat map: 256 levels as RGBA, the table of metaformer.detection.scoring.overlays.heat_colours, which
// tests compare this with.

const TABLE = ""
  + "DgUxAA8FMgAQBDQAEgQ1ABMENgAUBDcAFQQ5ABYEOgAYBDsAGQQ8ABoEPgAbBD8AHARAAB4EQQAfBEIAIARDACIERAAj"
  + "BEUAJARHACYESAAnBEkAKARKACoESwArBEwALARMAC4ETQAvBE4AMARPADIEUAAzBFEANQRSADYFUgA3BVMAOQVUADoF"
  + "VQA8BVYAPQZWAD8GVwBABlgAQgZYAEMHWQBFB1oARgdaAEcIWwBJCFwASglcAEwJXQBNCl0ATwpeAFALXgBSC18AUwxf"
  + "AFUMYABWDWAAWA1hAFkOYQBbDmIAXQ9iAF4PYgBgEGMAYRFjAGMRZABkEmQAZhJkAGcTZQFpFGUFahRlCWwVZg1tFmYR"
  + "bxZmFXAXZhlyGGcdcxhnIXUZZyV2GmcpeBpnLXkbaDF7HGg1fB1oOX4daD1/HmhBgR9oRYIgaUmEIGlNhSFpUYciaVWI"
  + "I2lZiiRpXYskaWGNJWlljiZpaZAnaW2RKGlxkilpdZQpaXmVKml9lytpgZgsaYWaLWmJmy5pjZwvaZGeMGmVnzFpmaEy"
  + "aZ2iM2mhozNppaU0aammNWmtpzZpsak3aLWqOGi5qzlova06aMGuO2jFrzxoybE9aM2yPmjRs0Bn1bVBZ9m2Qmfdt0Nn"
  + "4bhEZ+W6RWbpu0Zm7bxHZvG9SGb1vklm+cBKZf3BTGX/wk1l/8NOZf/ET2T/xVBk/8ZRZP/IUmT/yVRj/8pVY//LVmP/"
  + "zFdj/81YYv/OWmL/z1ti/9BcYv/RXWH/0l5h/9NgYf/UYWD/1WJg/9ZjYP/XZWD/2GZf/9lnX//aaF//22pe/9xrXv/d"
  + "bF7/3m5e/95vXf/fcF3/4HJd/+FzXf/idFz/43Vc/+N3XP/keFv/5Xpb/+Z7W//nfFv/535b/+h/Wv/pgFr/6YJa/+qD"
  + "Wv/rhFr/7IZZ/+yHWf/tiVn/7opZ/+6LWf/vjVn/745Z//CQWP/xkVj/8ZJY//KUWP/ylVj/85dY//OYWP/0mlj/9JtY"
  + "//WdWf/1nln/9p9Z//ahWf/3oln/96RZ//elWv/4p1r/+Kha//iqW//5q1v/+a1b//quXP/6sFz/+rFd//qzXv/7tF7/"
  + "+7Zf//u3X//7uWD//Lph//y8Yv/8vWP//L9k//zAZf/9wmb//cNn//3FaP/9x2n//chq//3Ka//9y23//c1u//3Ob//9"
  + "0HH//dFy//3TdP/91HX//dZ3//3Xef/92Xv//dp9//3cfv/93YD//d+C//3ghP/84of//OOJ//zli//85o3//OiQ//vp"
  + "kv/765T/++yX//vtmf/675z/+vCf//rxof/686T/+fSn//n1qv/596z/+Piv//j5sv/4+rX/9/u4/w==";

export const HEAT = Uint8Array.from(atob(TABLE), (letter) => letter.charCodeAt(0));
